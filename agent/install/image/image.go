// Package image is the installer of releases whose slot is the product: the boot
// chain, or someone else, runs it. There is nothing to start.
package image

import (
	"context"

	"github.com/otad/otad/agent"
)

// Installer implements agent.Installer.
type Installer struct{}

var _ agent.Installer = Installer{}

// Start returns a process that counts as alive: what runs is the slot itself.
func (Installer) Start(context.Context, agent.App) (agent.Process, error) { return process{}, nil }

type process struct{}

func (process) Alive() bool { return true }
func (process) Stop()       {}
