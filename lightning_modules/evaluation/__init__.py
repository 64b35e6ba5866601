"""What comes after sampling: results files, protocols, comparisons, and scores of anyone's pictures."""
