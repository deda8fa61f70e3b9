"""The commands, their options, and progress on the terminal. Door: `app.main`, which `premed` calls."""
