package serving

import "os"

// machineMemory returns the bytes that this process may still take.
func machineMemory() (int64, bool) { return memoryLeft(os.DirFS("/")) }
