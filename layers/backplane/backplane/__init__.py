"""What two or more of Backplane's functions share."""
