"""The methods: one LightningModule a paper, over a shared diffusion trainer."""
