package api_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/otad/otad/internal/api"
	"github.com/otad/otad/internal/blob"
	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/selector"
	"github.com/otad/otad/pkg/shadow"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

// TestCodes: every class of error has a code of the API, however it is wrapped.
func TestCodes(t *testing.T) {
	_, syntax := selector.Parse("id = ")
	for err, want := range map[error]connect.Code{
		fleet.ErrNotFound: connect.CodeNotFound, fleet.ErrConflict: connect.CodeAlreadyExists, fleet.ErrDenied: connect.CodePermissionDenied,
		fleet.ErrInvalid: connect.CodeInvalidArgument, fleet.ErrStale: connect.CodeAborted, fleet.ErrBusy: connect.CodeAborted,
		fleet.ErrUnavailable: connect.CodeUnavailable, fleet.ErrDoubt: connect.CodeUnknown,
		fleet.ErrNoDevices: connect.CodeFailedPrecondition, fleet.ErrUntagged: connect.CodeFailedPrecondition, fleet.ErrUnsigned: connect.CodeFailedPrecondition, fleet.ErrOutranked: connect.CodeFailedPrecondition, ota.ErrState: connect.CodeFailedPrecondition,
		fleet.NoShadow("gw-1", ""): connect.CodeNotFound, blob.ErrTooLarge: connect.CodeResourceExhausted, syntax: connect.CodeInvalidArgument,
		shadow.ErrVersionConflict: connect.CodeAborted, shadow.ErrInvalid: connect.CodeInvalidArgument, shadow.ErrTooLarge: connect.CodeInvalidArgument,
		shadow.NotFound("n"): connect.CodeNotFound,
		context.Canceled:     connect.CodeCanceled, context.DeadlineExceeded: connect.CodeDeadlineExceeded,
		errors.New("anything else"): connect.CodeInternal,
	} {
		if got := api.CodeOf(fmt.Errorf("wrapped: %w", err)); got != want {
			t.Errorf("%v: %s, want %s", err, got, want)
		}
	}
}

// TestTextsLeaveOutTheirClass where the code says it, and only there.
func TestTextsLeaveOutTheirClass(t *testing.T) {
	for want, err := range map[string]error{
		"group g exists":                      fmt.Errorf("group g exists: %w", fleet.ErrConflict),
		"enrollment token t is revoked":       fmt.Errorf("enrollment token t is revoked: %w", fleet.ErrDenied),
		"device d: not found":                 fmt.Errorf("device d: %w", fleet.ErrNotFound),
		"webhook w: conflict: it is disabled": fmt.Errorf("webhook w: %w: it is disabled", fleet.ErrConflict),
		"conflict":                            fleet.ErrConflict,
	} {
		if got := api.Said(err); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestDevicesAndTokens(t *testing.T) {
	p := newPlane(t)
	p.initTrust()
	d := p.devices()
	at := time.Now().Add(time.Hour).Truncate(time.Second)
	created := must(p, d.CreateEnrollmentToken, &otadv1.CreateEnrollmentTokenRequest{
		Uses: 2, DeviceGlob: "gw-*", Hardware: "rpi4", Tags: map[string]string{"site": "paris"}, ExpiresAt: timestamppb.New(at),
	})
	if len(created.GetSecret()) != 32 || created.GetToken().GetUses() != 2 || !created.GetToken().GetExpiresAt().AsTime().Equal(at) {
		t.Fatalf("%v", created)
	}
	refused(p, d.CreateEnrollmentToken, &otadv1.CreateEnrollmentTokenRequest{Uses: -1}, connect.CodeInvalidArgument, "uses")
	refused(p, d.CreateEnrollmentToken, &otadv1.CreateEnrollmentTokenRequest{DeviceGlob: "["}, connect.CodeInvalidArgument, "pattern")
	if list := must(p, d.ListEnrollmentTokens, &otadv1.ListEnrollmentTokensRequest{}).GetTokens(); len(list) != 1 || list[0].GetTags()["site"] != "paris" {
		t.Fatalf("%v", list)
	}
	must(p, d.RevokeEnrollmentToken, &otadv1.RevokeEnrollmentTokenRequest{Id: created.GetToken().GetId()})
	refused(p, d.RevokeEnrollmentToken, &otadv1.RevokeEnrollmentTokenRequest{Id: "none"}, connect.CodeNotFound, "none")

	p.enroll("gw-1")
	if got := must(p, d.GetDevice, &otadv1.GetDeviceRequest{Id: "gw-1"}).GetDevice(); got.GetHardware() != "rpi4" || got.GetOnline() || got.GetLastSeen() != nil {
		t.Fatalf("%v", got)
	}
	refused(p, d.GetDevice, &otadv1.GetDeviceRequest{Id: "gw-9"}, connect.CodeNotFound, "device gw-9: not found")
	if got := must(p, d.RevokeDevice, &otadv1.RevokeDeviceRequest{Id: "gw-1"}).GetDevice(); got.GetRevokedAt() == nil {
		t.Fatalf("%v", got)
	}
	refused(p, d.RevokeDevice, &otadv1.RevokeDeviceRequest{}, connect.CodeNotFound, "not found")
	must(p, d.DeleteDevice, &otadv1.DeleteDeviceRequest{Id: "gw-1"})
	refused(p, d.DeleteDevice, &otadv1.DeleteDeviceRequest{Id: "gw-1"}, connect.CodeNotFound, "device gw-1: not found")
	refused(p, d.GetDevice, &otadv1.GetDeviceRequest{Id: "gw-1"}, connect.CodeNotFound, "device gw-1: not found")
}

func TestPages(t *testing.T) {
	p := newPlane(t)
	p.initTrust()
	var ids []string
	for i := range 7 {
		ids = append(ids, fmt.Sprintf("gw-%d", i))
	}
	p.enroll(ids...)
	d := p.devices()
	var got []string
	for token, pages := "", 1; ; pages++ {
		page := must(p, d.ListDevices, &otadv1.ListDevicesRequest{PageSize: 3, PageToken: token})
		for _, device := range page.GetDevices() {
			got = append(got, device.GetId())
		}
		if token = page.GetNextPageToken(); token == "" {
			if pages != 3 {
				t.Errorf("%d pages", pages)
			}
			break
		}
	}
	if strings.Join(got, " ") != strings.Join(ids, " ") {
		t.Errorf("%v", got)
	}
	if page := must(p, d.ListDevices, &otadv1.ListDevicesRequest{Selector: `id = "gw-5"`}); len(page.GetDevices()) != 1 || page.GetNextPageToken() != "" {
		t.Errorf("%v", page)
	}
	refused(p, d.ListDevices, &otadv1.ListDevicesRequest{Selector: `hardware = = "x"`}, connect.CodeInvalidArgument, "\nhardware = = \"x\"\n           ^")
	for _, bad := range []*otadv1.ListDevicesRequest{{PageSize: -1}, {PageSize: fleet.MaxPage + 1}, {PageToken: "?"}, {PageToken: "YQpi"}} {
		refused(p, d.ListDevices, bad, connect.CodeInvalidArgument, "page")
	}
	for _, bad := range []string{"YQ", "YQpiCmM"} { // "a", and "a\nb\nc" whose attempt is no number
		refused(p, p.rollouts().ListExecutions, &otadv1.ListExecutionsRequest{PageToken: bad}, connect.CodeInvalidArgument, "page token")
	}
	refused(p, p.rollouts().ListExecutions, &otadv1.ListExecutionsRequest{RolloutId: "r-9"}, connect.CodeNotFound, "rollout r-9")
}

func TestShadows(t *testing.T) {
	p := newPlane(t)
	p.initTrust()
	p.enroll("gw-1")
	s := p.shadows()
	refused(p, s.GetShadow, &otadv1.GetShadowRequest{DeviceId: "gw-1"}, connect.CodeNotFound, "device gw-1 has no shadow yet")
	refused(p, s.GetShadow, &otadv1.GetShadowRequest{DeviceId: "gw-9"}, connect.CodeNotFound, "device gw-9: not found")
	refused(p, s.GetShadow, &otadv1.GetShadowRequest{DeviceId: "gw-1", Name: "a/b"}, connect.CodeInvalidArgument, "")
	update := func(text string) *otadv1.UpdateShadowRequest {
		return &otadv1.UpdateShadowRequest{DeviceId: "gw-1", Update: []byte(text)}
	}
	if got := must(p, s.UpdateShadow, update(`{"state":{"desired":{"mode":"eco"}}}`)); !bytes.Contains(got.GetDocument(), []byte(`"eco"`)) {
		t.Fatalf("%s", got.GetDocument())
	}
	refused(p, s.UpdateShadow, update(`{"state":{"desired":{"mode":"full"}},"version":7}`), connect.CodeAborted, "")
	refused(p, s.UpdateShadow, update(`{`), connect.CodeInvalidArgument, "")
	refused(p, s.UpdateShadow, update(`{"state":{"desired":{"k":"`+strings.Repeat("x", shadow.MaxStateBytes)+`"}}}`), connect.CodeInvalidArgument, "")
	if got := must(p, s.GetShadow, &otadv1.GetShadowRequest{DeviceId: "gw-1"}); !bytes.Contains(got.GetDocument(), []byte(`"version":1`)) {
		t.Fatalf("a refused update was stored: %s", got.GetDocument())
	}
}

func TestFirmwareAndTrust(t *testing.T) {
	p := newPlane(t)
	f, tr := p.firmware(), p.trust()
	if got := must(p, tr.GetTrust, &otadv1.GetTrustRequest{}); len(got.GetRoot()) > 0 || !strings.HasPrefix(got.GetSnapshotKey(), "ed25519:") || len(got.GetCaSha256()) != 32 || got.GetDeviceUrl() == "" {
		t.Fatalf("%v", got)
	}
	refused(p, tr.PublishTargets, &otadv1.PublishTargetsRequest{Targets: []byte("{}")}, connect.CodeAlreadyExists, "key init")
	root, targets := p.root()
	refused(p, tr.InitTrust, &otadv1.InitTrustRequest{Root: []byte("{}"), Targets: targets}, connect.CodeInvalidArgument, "root")
	must(p, tr.InitTrust, &otadv1.InitTrustRequest{Root: root, Targets: targets})
	refused(p, tr.InitTrust, &otadv1.InitTrustRequest{Root: root, Targets: targets}, connect.CodeAlreadyExists, "root already")

	m := p.make("1.0", "firmware")
	create := &otadv1.CreateReleaseRequest{Manifest: m.manifestJSON(p), Index: m.index}
	refused(p, f.CreateRelease, create, connect.CodeNotFound, "was not uploaded")
	if status, body := p.put(m.manifest.ImageDigest, bytes.NewReader(m.object)); status != http.StatusOK || body != fmt.Sprintf(`{"size":%d}`, len(m.object)) {
		t.Fatalf("%d %s", status, body)
	}
	refused(p, f.GetImage, &otadv1.GetImageRequest{Sha256: m.manifest.ImageDigest}, connect.CodeNotFound, "image")
	refused(p, f.CreateRelease, &otadv1.CreateReleaseRequest{Manifest: []byte(`{"name":1}`), Index: m.index}, connect.CodeInvalidArgument, "manifest")
	refused(p, f.CreateRelease, &otadv1.CreateReleaseRequest{Manifest: m.manifestJSON(p), Index: m.index[1:]}, connect.CodeInvalidArgument, "")
	if got := must(p, f.CreateRelease, create).GetRelease(); got.GetState() != string(ota.ReleaseDraft) {
		t.Fatalf("%v", got)
	}
	other := p.make("1.0", "other")
	refused(p, f.CreateRelease, &otadv1.CreateReleaseRequest{Manifest: other.manifestJSON(p), Index: other.index}, connect.CodeAlreadyExists, "new version")
	next := p.sign(m)
	if got := must(p, tr.PublishTargets, &otadv1.PublishTargetsRequest{Targets: next}); got.GetVersion() != 2 || len(got.GetSigned()) != 1 {
		t.Fatalf("%v", got)
	}
	refused(p, tr.PublishTargets, &otadv1.PublishTargetsRequest{Targets: next}, connect.CodeAborted, "version")
	if got := must(p, f.GetRelease, &otadv1.GetReleaseRequest{Name: "gw", Version: "1.0"}); got.GetRelease().GetState() != string(ota.ReleaseSigned) || !bytes.Equal(got.GetIndex(), m.index) {
		t.Fatalf("%v", got)
	}
	refused(p, f.GetRelease, &otadv1.GetReleaseRequest{Name: "gw", Version: "9"}, connect.CodeNotFound, "gw@9")
	refused(p, f.GetRelease, &otadv1.GetReleaseRequest{Name: "../x"}, connect.CodeInvalidArgument, "")
	if got := must(p, f.GetImage, &otadv1.GetImageRequest{Sha256: m.manifest.ImageDigest}); got.GetObjectSize() != int64(len(m.object)) {
		t.Fatalf("%v", got)
	}
	for name, n := range map[string]int{"": 1, "gw": 1, "cam": 0} {
		if got := must(p, f.ListReleases, &otadv1.ListReleasesRequest{Name: name}); len(got.GetReleases()) != n {
			t.Errorf("%q: %v", name, got)
		}
	}
}

func spec(version string) *otadv1.RolloutSpec {
	return &otadv1.RolloutSpec{
		Firmware: "gw@" + version, Seed: "s",
		Stages: []*otadv1.StageSpec{
			{Percent: 50, Gate: &otadv1.Gate{Success: 1}, Soak: durationpb.New(0)}, {Percent: 100, Gate: &otadv1.Gate{Success: 1}},
		},
	}
}

func TestRollouts(t *testing.T) {
	p := newPlane(t)
	p.initTrust()
	p.signed("1.0")
	r := p.rollouts()
	refused(p, r.PlanRollout, &otadv1.PlanRolloutRequest{Spec: spec("1.0")}, connect.CodeFailedPrecondition, "no device is enrolled")
	p.enroll("gw-1", "gw-2", "gw-3", "gw-4")
	refused(p, r.PlanRollout, &otadv1.PlanRolloutRequest{}, connect.CodeInvalidArgument, "")
	refused(p, r.CreateRollout, &otadv1.CreateRolloutRequest{Spec: spec("9")}, connect.CodeNotFound, "gw@9")
	bad := spec("1.0")
	bad.Selector = "id = ("
	refused(p, r.CreateRollout, &otadv1.CreateRolloutRequest{Spec: bad}, connect.CodeInvalidArgument, "^")
	if plan := must(p, r.PlanRollout, &otadv1.PlanRolloutRequest{Spec: spec("1.0")}); plan.GetPopulation() != 4 || len(plan.GetStages()) != 2 || plan.GetStages()[0].GetDevices() != 2 {
		t.Fatalf("%v", plan)
	}
	short := spec("1.0")
	short.InProgressTimeout = durationpb.New(time.Second)
	refused(p, r.CreateRollout, &otadv1.CreateRolloutRequest{Spec: short}, connect.CodeInvalidArgument, "timeout of 1s")
	timed := spec("1.0")
	timed.InProgressTimeout = durationpb.New(time.Hour)
	created := must(p, r.CreateRollout, &otadv1.CreateRolloutRequest{Spec: timed}).GetRollout()
	if created.GetInProgressTimeout().AsDuration() != time.Hour {
		t.Errorf("timeout %v", created.GetInProgressTimeout())
	}
	id := created.GetId()
	refused(p, r.ResumeRollout, &otadv1.ResumeRolloutRequest{Id: id}, connect.CodeFailedPrecondition, "PAUSED")
	refused(p, r.PauseRollout, &otadv1.PauseRolloutRequest{Id: "r-none"}, connect.CodeNotFound, "r-none")
	long := strings.Repeat("ä", api.MaxReasonBytes/2)
	refused(p, r.PauseRollout, &otadv1.PauseRolloutRequest{Id: id, Reason: long + "x"}, connect.CodeInvalidArgument, "at most 500")
	if got := must(p, r.PauseRollout, &otadv1.PauseRolloutRequest{Id: id, Reason: long}).GetRollout(); got.GetState() != "PAUSED" || got.GetReason() != long {
		t.Fatalf("%v", got)
	}
	must(p, r.ResumeRollout, &otadv1.ResumeRolloutRequest{Id: id})
	if got := must(p, r.GetRollout, &otadv1.GetRolloutRequest{Id: id}).GetRollout(); got.GetState() != "RUNNING" {
		t.Fatalf("%v", got)
	}
	p.engine()
	p.watched(id, func(v *otadv1.Rollout) bool { return v.GetStages()[0].GetCounts().GetQueued() == 2 })
	page := must(p, r.ListExecutions, &otadv1.ListExecutionsRequest{RolloutId: id, PageSize: 1})
	rest := must(p, r.ListExecutions, &otadv1.ListExecutionsRequest{RolloutId: id, PageToken: page.GetNextPageToken()})
	if len(page.GetExecutions()) != 1 || len(rest.GetExecutions()) != 1 || rest.GetNextPageToken() != "" || page.GetExecutions()[0].GetDeviceId() == rest.GetExecutions()[0].GetDeviceId() {
		t.Fatalf("%v, then %v", page, rest)
	}
	if got := must(p, r.AbortRollout, &otadv1.AbortRolloutRequest{Id: id}).GetRollout(); got.GetState() != "ABORTED" || got.GetEndedAt() == nil {
		t.Fatalf("%v", got)
	}
	refused(p, r.AbortRollout, &otadv1.AbortRolloutRequest{Id: id}, connect.CodeFailedPrecondition, "ABORTED")
	if got := must(p, r.ListRollouts, &otadv1.ListRolloutsRequest{}).GetRollouts(); len(got) != 1 {
		t.Fatalf("%v", got)
	}
}
