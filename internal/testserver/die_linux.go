package testserver

import (
	"os/exec"
	"syscall"
)

// dieWithParent lets the kernel end the server with the test process, also
// when a test panics or is killed and no cleanup runs.
func dieWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}

// become makes the command run as another user.
func become(cmd *exec.Cmd, c *credential) {
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: c.Uid, Gid: c.Gid}
}
