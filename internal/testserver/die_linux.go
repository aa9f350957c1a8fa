package testserver

import "syscall"

// dieWithParent lets the kernel end the server with the test process, also
// when a test panics or is killed and no cleanup runs.
func dieWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
