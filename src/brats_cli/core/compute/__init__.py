"""What the machine offers: devices and their arithmetic, CPUs and memory, processes, peers."""
