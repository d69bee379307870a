"""What can be claimed of a trial: budgets, bounds that hold, and the sentences that say so."""
