"""What both worker services share: servicer, step loop, leases, pull and export."""
