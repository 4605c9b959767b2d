"""A run on several devices and processes: where arrays lie, and how processes begin and end."""
