package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/otad/otad/pkg/signing"
)

// The files of a key directory.
const (
	rootKeyFile    = "root.key"     // sealed
	targetsKeyFile = "targets.key"  // sealed
	rootFile       = "root.json"    // the first root as signed; its sha256 is what tokens pin
	targetsFile    = "targets.json" // the newest targets that were published from here
	firstTargets   = "targets.1.json"
)

// keyDir is the directory of an operator's keys. What stands in it is trusted;
// what the server sends is judged by it.
type keyDir struct{ path string }

func (a *app) keyDirFlag(cmd *cobra.Command, dir *string) {
	cmd.Flags().StringVar(dir, "keys", "", "directory of the operator's keys (default: keys in the configuration directory)")
}

func (a *app) openKeyDir(flag string) (keyDir, error) {
	if flag != "" {
		return keyDir{flag}, nil
	}
	dir, err := a.configDir()
	return keyDir{filepath.Join(dir, "keys")}, err
}

func (k keyDir) file(name string) string { return filepath.Join(k.path, name) }

// root returns the first root, checked to be signed by its own keys.
func (k keyDir) root() ([]byte, error) {
	raw, err := readSmall(k.file(rootFile), signing.MaxRootBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, hint(fail(exitNotFound, "no trusted root in %s", k.path),
			"otactl key init makes one; on another machine copy %s from where that was done", rootFile)
	}
	if err != nil {
		return nil, err
	}
	if err := signing.VerifyRoot(raw); err != nil {
		return nil, hint(fail(exitFailed, "%s: %w", k.file(rootFile), err), "restore it from a backup: nothing else says whom this operator trusts")
	}
	return raw, nil
}

// lastVersion is the version of the targets last published from here, 0 for none.
func (k keyDir) lastVersion() (int64, error) {
	raw, err := readSmall(k.file(targetsFile), signing.MaxTargetsBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return signing.Version(raw)
}

// remember keeps published targets, unless newer ones are kept.
func (k keyDir) remember(targets []byte) error {
	last, err := k.lastVersion()
	if err != nil {
		return err
	}
	if version, err := signing.Version(targets); err != nil || version <= last {
		return err
	}
	return writeFile(k.file(targetsFile), targets)
}

// openKey opens a sealed key; the passphrase is asked for only when the file is
// a key of that role.
func (a *app) openKey(path, role string) (signing.Key, error) {
	sealed, err := readSmall(path, signing.MaxSealedBytes)
	if err != nil {
		return signing.Key{}, hint(fmt.Errorf("read the %s key: %w", role, err), "otactl key list shows the keys at hand; otactl key init makes them")
	}
	if got, err := signing.SealedRole(sealed); err != nil || got != role {
		return signing.Key{}, usage("%s is not a sealed %s key", path, role)
	}
	pass, err := a.passphrase("Passphrase of " + path)
	if err != nil {
		return signing.Key{}, err
	}
	key, err := signing.Open(sealed, role, pass)
	if errors.Is(err, signing.ErrPassphrase) {
		return key, hint(fail(exitDenied, "%s: %w", path, err), "the passphrase comes from OTACTL_PASSPHRASE or is asked for on a terminal")
	}
	return key, err
}

// minPassphrase keeps keys from being sealed with next to nothing.
const minPassphrase = 8

// passphrase takes OTACTL_PASSPHRASE or asks on a terminal.
func (a *app) passphrase(prompt string) ([]byte, error) {
	if pass := a.env("OTACTL_PASSPHRASE"); pass != "" {
		return []byte(pass), nil
	}
	if !a.terminal(a.stdin) {
		return nil, hint(fail(exitDenied, "a passphrase is needed and there is no terminal to ask on"), "set OTACTL_PASSPHRASE")
	}
	fmt.Fprintf(a.stderr, "%s: ", prompt)
	pass, err := a.readSecret()
	fmt.Fprintln(a.stderr)
	return pass, err
}

// newPassphrase is passphrase for sealing: asked for twice and not too short.
func (a *app) newPassphrase() ([]byte, error) {
	pass, err := a.passphrase("New passphrase for the keys")
	if err != nil {
		return nil, err
	}
	if len(pass) < minPassphrase {
		return nil, usage("the passphrase has %d bytes: want at least %d", len(pass), minPassphrase)
	}
	if a.env("OTACTL_PASSPHRASE") != "" {
		return pass, nil
	}
	again, err := a.passphrase("The same again")
	if err == nil && !bytes.Equal(pass, again) {
		err = fail(exitFailed, "the two passphrases differ; nothing was made")
	}
	return pass, err
}

// otherRoot is the error of a server that does not belong to the local keys.
func otherRoot(server string, digest [sha256.Size]byte) error {
	return hint(fail(exitConflict, "%s has another trusted root (%x) than the local keys", server, digest),
		"use the keys that server was initialised with (--keys DIR), or the server of these keys (--server, --context)")
}
