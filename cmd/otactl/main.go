// Command otactl operates an otad server: keys, firmware, rollouts, devices and
// shadows, and the offline tools of the image format.
//
// The parties: a person or a script on one side, the operator API of otad on
// the other. It holds the two things the server must not have, the signing keys
// and the first trusted root, and trusts the server for neither. It is not a
// daemon: each run does one thing and ends with a status that says how it went.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := run(ctx, newApp(), os.Args[1:])
	stop()
	os.Exit(status)
}
