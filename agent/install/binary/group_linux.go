package binary

import "syscall"

// ownGroup gives the program a process group, and ends it with the agent.
func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
