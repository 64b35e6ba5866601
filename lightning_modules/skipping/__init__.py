"""SkipDiff's parts: the sampler that skips steps, the policy that chooses them, and its training by reinforcement."""
