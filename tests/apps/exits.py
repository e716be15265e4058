"""An application that ends the program as it is imported, for want of a setting."""

import sys

sys.exit("DATABASE_URL is not set")
