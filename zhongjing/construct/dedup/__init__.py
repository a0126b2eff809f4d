"""Near duplicates within and across sources, and what of them stands in test sets."""
