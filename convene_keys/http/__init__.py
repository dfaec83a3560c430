"""What all ways in over HTTP share."""
