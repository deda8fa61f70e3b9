"""The commands, their options, and progress on the terminal. Door: `app.main`, the entry point of `premed`."""
