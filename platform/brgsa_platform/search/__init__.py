"""Several trainings compared: Tune and Optuna, and what a search leaves."""
