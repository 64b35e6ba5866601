"""One architecture per file. Networks for which weights are published keep the published key names."""
