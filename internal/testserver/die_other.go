//go:build !linux

package testserver

import (
	"os/exec"
	"syscall"
)

// dieWithParent has no equivalent here; cleanup of the test ends the server.
func dieWithParent() *syscall.SysProcAttr { return nil }

// become does nothing: where there is no root, there is nobody else to be.
func become(*exec.Cmd, *credential) {}
