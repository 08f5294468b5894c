"""What is read from outside is a claim: types and bounds, text fit to be printed, files that are whole."""
