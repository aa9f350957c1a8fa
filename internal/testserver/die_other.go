//go:build !linux

package testserver

import "syscall"

// dieWithParent has no equivalent here; cleanup of the test ends the server.
func dieWithParent() *syscall.SysProcAttr { return nil }
