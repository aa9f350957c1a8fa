// Package command runs what a device's own configuration names: the program that
// asks its people for consent, and the actions that the server may have run.
//
// The parties: the configuration says what may run and with which values; the
// server chooses a name out of it. No shell reads anything of either: a program
// is started with whole arguments, in a process group of its own that dies with
// the agent or at its time-out, in an environment that is made for it.
package command
