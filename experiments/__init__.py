"""Runnable experiments: training loops, data and plots around the jaxsparse library."""
