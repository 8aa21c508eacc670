"""The one training loop and the stages around it: opening, saving, plans, rollouts."""
