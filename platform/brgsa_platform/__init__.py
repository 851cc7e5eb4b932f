"""The BrgSA platform: Ray Data, Ray Train and Tune around the `brgsa` library, told in MLflow."""
