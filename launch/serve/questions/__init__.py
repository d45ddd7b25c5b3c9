"""Questions of clients: their bodies, how they are run, and the jobs that the long ones become."""
