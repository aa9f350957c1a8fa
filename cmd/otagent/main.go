// Command otagent is the device agent: it enrolls a device with an otad server
// and keeps its firmware up to date.
//
// The parties: the operator who hands over an enrollment token, the server, and
// the machine it runs on. It is one static binary that needs no other program;
// "otactl agent" is the same code. It is not a supervisor: systemd, or whatever
// starts it, also starts it again.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// version is set by the linker.
var version = "devel"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := program{stdout: os.Stdout, stderr: os.Stderr, env: os.Getenv}.run(ctx, os.Args[1:])
	stop()
	os.Exit(status)
}
