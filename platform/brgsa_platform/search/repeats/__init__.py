"""Named configurations trained on several seeds and compared: what ablation and confirmation are made of."""
