"""What the command line shows: progress bars and drawn pages. No torch in here."""
