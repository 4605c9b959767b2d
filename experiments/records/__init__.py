"""The files of a run: its folder, progress, metrics, report and plots."""
