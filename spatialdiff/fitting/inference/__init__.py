"""What a fit is worth: intervals, comparison, cross-validation, pictures."""
