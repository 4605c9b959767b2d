"""What a run leaves behind: its folder, progress, metrics, report and plots."""
