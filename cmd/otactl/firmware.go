package main

import (
	"encoding/hex"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/otad/otad/pkg/ota"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

func newFirmwareCmd(a *app) *cobra.Command {
	return noun(&cobra.Command{Use: "firmware", Short: "Upload, sign, list, verify and withdraw releases"},
		newFirmwareUploadCmd(a), newFirmwareSignCmd(a), newFirmwareListCmd(a), newFirmwareShowCmd(a), newFirmwareVerifyCmd(a), newFirmwareWithdrawCmd(a))
}

func newFirmwareListCmd(a *app) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use: "list", Short: "List releases, newest first", Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			resp, err := call(cmd.Context(), c.firmware.ListReleases, &otadv1.ListReleasesRequest{Name: name})
			if err != nil {
				return err
			}
			var views []releaseView
			for _, r := range resp.GetReleases() {
				v, err := newReleaseView(r)
				if err != nil {
					return err
				}
				views = append(views, v)
			}
			return printList(a, a.releaseTable(), views)
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "only the releases of this firmware")
	return cmd
}

func newFirmwareShowCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show NAME@VERSION", Short: "Show a release", Args: takes("NAME@VERSION"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := ota.ParseReleaseID(args[0])
			if err != nil {
				return err
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			return a.showStored(cmd.Context(), c, id)
		},
	}
}

// verdictView is the result of firmware verify.
type verdictView struct {
	Firmware       string    `json:"firmware"`
	Verified       bool      `json:"verified"`
	TargetsVersion int64     `json:"targetsVersion"`
	Expires        time.Time `json:"expires"` // of the targets
	IndexSHA256    string    `json:"indexSha256"`
	ImageSHA256    string    `json:"imageSha256"`
	Image          string    `json:"image,omitempty"` // local file that was compared
}

func newFirmwareVerifyCmd(a *app) *cobra.Command {
	var dir, path string
	cmd := &cobra.Command{
		Use: "verify NAME@VERSION", Short: "Check a release as a device would, under the local root", Args: takes("NAME@VERSION"),
		Long: `verify follows the signatures from the local root.json to the release: root,
targets, index and manifest, and with --image the raw image itself. It believes
the server in nothing.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := ota.ParseReleaseID(args[0])
			if err != nil {
				return err
			}
			keys, err := a.openKeyDir(dir)
			if err != nil {
				return err
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			t, err := c.fetchTrust(cmd.Context(), keys)
			if err != nil {
				return err
			}
			rel, err := a.checkedRelease(cmd.Context(), c, id, path)
			if err != nil {
				return err
			}
			if err := judge(t, rel, a.now()); err != nil {
				return err
			}
			return a.printVerdict(t, rel, path)
		},
	}
	a.keyDirFlag(cmd, &dir)
	cmd.Flags().StringVar(&path, "image", "", "raw image that the release has to match")
	return cmd
}

// judge says why a device would not install the release, nil when it would.
func judge(t trusted, c content, now time.Time) error {
	id := c.manifest.ID()
	signed := t.target(id.TargetPath())
	switch {
	case signed == nil:
		return hint(fail(exitFailed, "%s is not signed", id), "otactl firmware sign %s", id)
	case !c.is(signed):
		return hint(fail(exitDenied, "%s: the server's release is not what was signed (index sha256:%x)", id, signed.SHA256),
			"devices refuse it; look into how the server's data changed")
	case !now.Before(t.expires):
		return hint(fail(exitFailed, "%s is signed, but the targets expired at %s", id, t.expires.Format(time.RFC3339)), "otactl firmware sign --renew %s", id)
	}
	return nil
}

func (a *app) printVerdict(t trusted, c content, path string) error {
	sum := c.target().SHA256
	v := verdictView{
		Firmware: c.manifest.ID().String(), Verified: true, TargetsVersion: t.version, Expires: t.expires.UTC(),
		IndexSHA256: hex.EncodeToString(sum[:]), ImageSHA256: c.manifest.ImageDigest, Image: path,
	}
	return printOne(a, v, v.Firmware, func(w io.Writer) error {
		return writeFields(w, []field{
			{"Firmware", v.Firmware},
			{"Verdict", "verified"},
			{"Targets version", strconv.FormatInt(v.TargetsVersion, 10)},
			{"Expires", v.Expires.Format(time.RFC3339)},
			{"Index SHA-256", v.IndexSHA256},
			{"Image SHA-256", v.ImageSHA256},
			{"Image file", path},
		})
	})
}
