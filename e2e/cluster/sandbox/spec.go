// Package sandbox gives one process its own view of the file system: the
// machine's, with the volumes of a pod mounted into it, in a mount namespace
// that nobody else sees and that ends with the process.
package sandbox

// Spec describes a sandbox and the command that runs in it.
type Spec struct {
	// Root is an empty folder on which the new file system is assembled.
	Root string
	// Mounts are the volumes; a mount below another one's target comes on top.
	Mounts []Mount
	// Workdir is the command's working folder; it is created when absent.
	Workdir string
	// Command is the program, looked up in Env's PATH, and its arguments.
	Command []string
	// Env is the command's whole environment.
	Env []string
}

// Mount puts a file or folder of the machine at a path of the sandbox.
type Mount struct {
	Source   string
	Target   string
	ReadOnly bool
}
