package proc

import (
	"os/exec"
	"runtime"
	"syscall"
)

// Spawner starts processes that the kernel kills when this process dies, even
// by SIGKILL. The kernel ties that to the thread that forked, not to the
// process, so all of them are forked from one thread that never ends.
type Spawner struct {
	requests chan spawnRequest
}

type spawnRequest struct {
	command *exec.Cmd
	result  chan error
}

// NewSpawner starts the spawner's thread, which lives as long as the process.
func NewSpawner() *Spawner {
	s := &Spawner{requests: make(chan spawnRequest)}
	go s.serve()
	return s
}

func (s *Spawner) serve() {
	runtime.LockOSThread()
	for request := range s.requests {
		request.result <- request.command.Start()
	}
}

// Start starts command as the leader of a session of its own.
func (s *Spawner) Start(command *exec.Cmd) error {
	if command.SysProcAttr == nil {
		command.SysProcAttr = &syscall.SysProcAttr{}
	}
	command.SysProcAttr.Pdeathsig = syscall.SIGKILL
	command.SysProcAttr.Setsid = true
	result := make(chan error, 1)
	s.requests <- spawnRequest{command: command, result: result}
	return <-result
}
