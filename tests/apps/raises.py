"""An application that cannot be imported."""

raise ValueError("the shop is closed")
