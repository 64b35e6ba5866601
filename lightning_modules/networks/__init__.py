"""One architecture a file. Networks that load published weights keep the published key names."""
