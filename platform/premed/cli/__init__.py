"""The commands, their options, and progress on the terminal. Entry point: `app.main`, the console script `premed`."""
