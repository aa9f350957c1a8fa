package agent

import (
	"context"
	"time"

	"github.com/otad/otad/pkg/ota"
)

// App is a verified image in a slot, ready to be started.
type App struct {
	Manifest ota.Manifest
	Image    string // path of the slot's image
	LogPath  string // where its output goes, for installers that have any
	// Crashed is called, from any goroutine, whenever the application has ended
	// without being stopped; nil: nobody wants to know.
	Crashed func(error)
}

// Installer knows how to bring an image to life. Which one is used stands in
// the signed manifest.
type Installer interface {
	// Start starts the image. ctx limits only the start; the process lives until
	// Stop.
	Start(ctx context.Context, app App) (Process, error)
}

// Process is what runs in the active slot. Its methods may be called from
// several goroutines.
type Process interface {
	// Alive reports whether the application runs at this instant.
	Alive() bool
	// Stop ends it with all its children and returns when they are gone.
	Stop()
}

// Trial is what health checks look at.
type Trial struct {
	Image string      // path of the slot's image
	Alive func() bool // whether the installer's process runs
}

// Health judges an image during its trial, by the contract in its signed
// manifest (empty: the default one).
type Health interface {
	// Deadline checks the contract and returns how long the checks may take
	// altogether.
	Deadline(contract []byte) (time.Duration, error)
	// Check returns nil once the checks have held as long as the contract asks,
	// an error that says why not when ctx ends first or when a check can never
	// hold.
	Check(ctx context.Context, contract []byte, t Trial) error
}
