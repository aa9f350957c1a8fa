package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/otad/otad/pkg/image"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/signing"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

// releaseView is a release as -o json shows it. Times are RFC 3339.
type releaseView struct {
	Name            string          `json:"name"`
	Version         string          `json:"version"`
	State           string          `json:"state"` // DRAFT, SIGNED or WITHDRAWN
	Hardware        []string        `json:"hardware"`
	Installer       string          `json:"installer"`
	SecurityVersion int64           `json:"securityVersion"`
	MinVersion      string          `json:"minVersion,omitempty"` // of the same firmware, that a device must run to take it
	Requires        []string        `json:"requires,omitempty"`   // other firmware that it must run, NAME@VERSION or newer
	ImageSHA256     string          `json:"imageSha256"`
	ImageSize       int64           `json:"imageSize"`
	ObjectSize      int64           `json:"objectSize"` // bytes that a device without anything downloads
	IndexSHA256     string          `json:"indexSha256"`
	IndexSize       int64           `json:"indexSize"`
	Run             []string        `json:"run,omitempty"`
	Health          json.RawMessage `json:"health,omitempty"`
	CreatedAt       *time.Time      `json:"createdAt,omitempty"`
	SignedAt        *time.Time      `json:"signedAt,omitempty"`
	WithdrawnAt     *time.Time      `json:"withdrawnAt,omitempty"`
	Reason          string          `json:"reason,omitempty"` // why it was withdrawn
	Listed          bool            `json:"listed,omitempty"` // the newest signed targets list it; in show only
}

func (r releaseView) id() string { return r.Name + "@" + r.Version }

// state is for tables: with why it was withdrawn.
func (r releaseView) state() string {
	if r.Reason == "" {
		return r.State
	}
	return r.State + " (" + cutText(r.Reason, reasonShown) + ")"
}

// cutText is the beginning of a text, of at most so many characters.
func cutText(text string, most int) string {
	if runes := []rune(text); len(runes) > most {
		return string(runes[:most-1]) + "…"
	}
	return text
}

// reasonShown is how much of a reason a table shows.
const reasonShown = 40

// withdrawnText says when and why a release was withdrawn, and what is left to do.
func withdrawnText(ago string, r releaseView) string {
	switch {
	case r.WithdrawnAt == nil:
		return ""
	case r.Listed:
		return fmt.Sprintf("%s: %s; the signed targets still list it, 'otactl firmware withdraw %s' with the targets key signs them without", ago, r.Reason, r.id())
	}
	return ago + ": " + r.Reason
}

func newReleaseView(r *otadv1.Release) (releaseView, error) {
	m, err := parseManifest(r.GetManifest())
	if err != nil {
		return releaseView{}, fmt.Errorf("release %s@%s: %w", r.GetName(), r.GetVersion(), err)
	}
	return releaseView{
		Name: r.GetName(), Version: r.GetVersion(), State: r.GetState(), Hardware: m.HardwareIDs, Installer: m.Installer,
		SecurityVersion: m.SecurityVersion, MinVersion: m.MinVersion, Requires: releaseIDs(m.Requires), ImageSHA256: m.ImageDigest, ImageSize: m.ImageSize, ObjectSize: m.ObjectSize,
		IndexSHA256: r.GetIndexSha256(), IndexSize: r.GetIndexSize(), Run: m.Run, Health: m.Health,
		CreatedAt: when(r.GetCreatedAt()), SignedAt: when(r.GetSignedAt()), WithdrawnAt: when(r.GetWithdrawnAt()), Reason: r.GetReason(), Listed: r.GetListed(),
	}, nil
}

// parseManifest reads and checks a manifest; a field that this version does not
// know would be signed unseen, so it is refused.
func parseManifest(raw []byte) (ota.Manifest, error) {
	var m ota.Manifest
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&m); err != nil {
		return m, fmt.Errorf("read manifest: %w", err)
	}
	return m, m.Validate()
}

func (a *app) releaseTable() view[releaseView] {
	return view[releaseView]{
		name: releaseView.id,
		columns: []column[releaseView]{
			{head: "RELEASE", cell: releaseView.id},
			{head: "STATE", cell: releaseView.state},
			{head: "HARDWARE", cell: func(r releaseView) string { return strings.Join(r.Hardware, ",") }},
			{head: "SIZE", cell: func(r releaseView) string { return byteSize(r.ImageSize) }},
			{head: "DOWNLOAD", cell: func(r releaseView) string { return byteSize(r.ObjectSize) }},
			{head: "CREATED", cell: func(r releaseView) string { return a.ago(r.CreatedAt) }},
			{head: "INSTALLER", wide: true, cell: func(r releaseView) string { return r.Installer }},
			{head: "SECURITY", wide: true, cell: func(r releaseView) string { return strconv.FormatInt(r.SecurityVersion, 10) }},
			{head: "IMAGE", wide: true, cell: func(r releaseView) string { return r.ImageSHA256 }},
		},
	}
}

func (a *app) printRelease(r releaseView) error {
	return printOne(a, r, r.id(), func(w io.Writer) error {
		return writeFields(w, []field{
			{"Release", r.id()},
			{"State", r.State},
			{"Withdrawn", withdrawnText(a.ago(r.WithdrawnAt), r)},
			{"Hardware", strings.Join(r.Hardware, ",")},
			{"Installer", r.Installer},
			{"Security version", strconv.FormatInt(r.SecurityVersion, 10)},
			{"Needs", needsText(r.Name, r.MinVersion, r.Requires)},
			{"Image", exactSize(r.ImageSize)},
			{"Image SHA-256", r.ImageSHA256},
			{"Download", exactSize(r.ObjectSize)},
			{"Index SHA-256", r.IndexSHA256},
			{"Run", strings.Join(r.Run, " ")},
			{"Health", string(r.Health)},
			{"Created", a.ago(r.CreatedAt)},
			{"Signed", a.ago(r.SignedAt)},
		})
	})
}

func releaseIDs(list []ota.ReleaseID) []string {
	var ids []string
	for _, id := range list {
		ids = append(ids, id.String())
	}
	return ids
}

// needsText says what a device must run to take a release.
func needsText(name, minVersion string, requires []string) string {
	if minVersion != "" {
		requires = append([]string{name + "@" + minVersion}, requires...)
	}
	if len(requires) == 0 {
		return ""
	}
	return strings.Join(requires, " and ") + " or newer on the device"
}

// content is what a signature says about a release: its manifest and its index,
// which agree. Only newContent makes one.
type content struct {
	manifest ota.Manifest
	raw      []byte // the manifest as JSON
	index    *image.Index
	encoded  []byte // the index, the TUF target
}

// newContent checks that a manifest and an index describe the same image.
func newContent(rawManifest, encodedIndex []byte) (content, error) {
	m, err := parseManifest(rawManifest)
	if err != nil {
		return content{}, err
	}
	ix, err := image.ParseIndex(encodedIndex)
	if err != nil {
		return content{}, err
	}
	switch {
	case hex.EncodeToString(ix.RawDigest[:]) != m.ImageDigest:
		err = fmt.Errorf("the index is of image %x, the manifest of %s", ix.RawDigest, m.ImageDigest)
	case ix.RawSize != m.ImageSize:
		err = fmt.Errorf("the index is of %d bytes, the manifest of %d", ix.RawSize, m.ImageSize)
	case ix.ObjectSize() != m.ObjectSize:
		err = fmt.Errorf("the index is of an object of %d bytes, the manifest of %d", ix.ObjectSize(), m.ObjectSize)
	}
	return content{manifest: m, raw: rawManifest, index: ix, encoded: encodedIndex}, err
}

// releaseContent takes what the server says of a release and believes none of
// it that the parts do not prove.
func releaseContent(id ota.ReleaseID, resp *otadv1.GetReleaseResponse) (content, error) {
	c, err := newContent(resp.GetRelease().GetManifest(), resp.GetIndex())
	if err != nil {
		return c, fmt.Errorf("release %s: %w", id, err)
	}
	if c.manifest.ID() != id {
		return c, fmt.Errorf("release %s: the server sent the manifest of %s", id, c.manifest.ID())
	}
	if sum := sha256.Sum256(c.encoded); hex.EncodeToString(sum[:]) != resp.GetRelease().GetIndexSha256() {
		return c, fmt.Errorf("release %s: the server sent an index of digest %x and calls it %s", id, sum, resp.GetRelease().GetIndexSha256())
	}
	return c, nil
}

// target is the TUF target that signing the content adds.
func (c content) target() signing.Target {
	return signing.Target{
		Path: c.manifest.ID().TargetPath(), Length: int64(len(c.encoded)), SHA256: sha256.Sum256(c.encoded), Custom: c.raw,
	}
}

// is reports whether a signed target says exactly this.
func (c content) is(t *signing.Target) bool {
	want := c.target()
	return t.Path == want.Path && t.Length == want.Length && t.SHA256 == want.SHA256 && sameJSON(t.Custom, want.Custom)
}

// matchImage reads a raw image and compares it chunk by chunk and as a whole
// with an index.
func matchImage(ix *image.Index, raw io.Reader, progress func(int64)) error {
	whole := sha256.New()
	buf := make([]byte, image.MaxChunkBytes)
	var offset int64
	for i, c := range ix.Chunks {
		piece := buf[:c.Raw]
		if _, err := io.ReadFull(raw, piece); err != nil {
			return fmt.Errorf("image ends in chunk %d at byte %d: %w", i, offset, err)
		}
		sum := sha256.Sum256(piece)
		if !bytes.Equal(sum[:image.DigestSize], c.Digest[:]) {
			return fmt.Errorf("image differs in chunk %d, from byte %d", i, offset)
		}
		whole.Write(piece)
		offset += int64(c.Raw)
		progress(offset)
	}
	if n, err := raw.Read(buf[:1]); n > 0 || err != nil && err != io.EOF {
		return fmt.Errorf("image goes on after byte %d", offset)
	}
	if !bytes.Equal(whole.Sum(nil), ix.RawDigest[:]) {
		return fmt.Errorf("image has digest %x, the index %x", whole.Sum(nil), ix.RawDigest)
	}
	return nil
}

// matchFile is matchImage for a file, with a bar.
func (a *app) matchFile(ix *image.Index, path string) error {
	raw, err := openImage(path)
	if err != nil {
		return err
	}
	defer raw.Close()
	bar := a.progress("compare", raw.size)
	err = matchImage(ix, raw, bar.set)
	bar.done(err == nil)
	if err != nil {
		return hint(fail(exitFailed, "%s is not the image of the release: %w", path, err), "name the file that was uploaded, or upload this one under a new version")
	}
	return nil
}
