package api

import (
	"context"
	"encoding/json"

	"connectrpc.com/connect"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

type firmwareHandler struct{ *server }

func (h firmwareHandler) GetImage(ctx context.Context, r *connect.Request[otadv1.GetImageRequest]) (*connect.Response[otadv1.GetImageResponse], error) {
	index, size, err := h.fleet.Image(ctx, r.Msg.GetSha256())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&otadv1.GetImageResponse{Index: index, ObjectSize: size}), nil
}

func (h firmwareHandler) CreateRelease(ctx context.Context, r *connect.Request[otadv1.CreateReleaseRequest]) (*connect.Response[otadv1.CreateReleaseResponse], error) {
	m, err := fleet.ParseManifest(r.Msg.GetManifest())
	if err != nil {
		return nil, err
	}
	release, err := h.fleet.CreateRelease(ctx, m, r.Msg.GetIndex())
	if err != nil {
		return nil, err
	}
	out, err := encodeRelease(release)
	return connect.NewResponse(&otadv1.CreateReleaseResponse{Release: out}), err
}

func (h firmwareHandler) GetRelease(ctx context.Context, r *connect.Request[otadv1.GetReleaseRequest]) (*connect.Response[otadv1.GetReleaseResponse], error) {
	id := ota.ReleaseID{Name: r.Msg.GetName(), Version: r.Msg.GetVersion()}
	if err := id.Validate(); err != nil {
		return nil, err
	}
	release, index, err := h.fleet.Release(ctx, id)
	if err != nil {
		return nil, err
	}
	out, err := encodeRelease(release)
	if err != nil {
		return nil, err
	}
	out.Listed, err = h.fleet.Listed(ctx, id)
	return connect.NewResponse(&otadv1.GetReleaseResponse{Release: out, Index: index}), err
}

func (h firmwareHandler) ListReleases(ctx context.Context, r *connect.Request[otadv1.ListReleasesRequest]) (*connect.Response[otadv1.ListReleasesResponse], error) {
	all, err := h.fleet.Releases(ctx, r.Msg.GetName())
	if err != nil {
		return nil, err
	}
	out := &otadv1.ListReleasesResponse{}
	for _, release := range all {
		encoded, err := encodeRelease(release)
		if err != nil {
			return nil, err
		}
		out.Releases = append(out.Releases, encoded)
	}
	return connect.NewResponse(out), nil
}

func encodeRelease(r ota.Release) (*otadv1.Release, error) {
	manifest, err := json.Marshal(r.Manifest)
	return &otadv1.Release{
		Name: r.Name, Version: r.Version, State: string(r.State), Manifest: manifest,
		IndexSha256: r.IndexDigest, IndexSize: r.IndexSize,
		CreatedAt: timestamp(r.CreatedAt), SignedAt: timestamp(r.SignedAt), WithdrawnAt: timestamp(r.WithdrawnAt), Reason: r.Reason,
	}, err
}

func (h firmwareHandler) WithdrawRelease(ctx context.Context, r *connect.Request[otadv1.WithdrawReleaseRequest]) (*connect.Response[otadv1.WithdrawReleaseResponse], error) {
	id := ota.ReleaseID{Name: r.Msg.GetName(), Version: r.Msg.GetVersion()}
	if err := id.Validate(); err != nil {
		return nil, err
	}
	var targets []byte
	if len(r.Msg.GetTargets()) > 0 {
		targets = r.Msg.GetTargets()
	}
	w, err := h.fleet.WithdrawRelease(ctx, id, r.Msg.GetReason(), ota.AbortPolicy(r.Msg.GetPolicy()), targets)
	if err != nil {
		return nil, err
	}
	out := &otadv1.WithdrawReleaseResponse{
		State: string(w.Release.State), TargetsVersion: w.Version, Listed: w.Listed, Rerouted: int32(w.Rerouted),
		Running: encodeAffected(w.Running), Desiring: encodeAffected(w.Desiring),
	}
	for _, o := range w.Rollouts {
		out.Rollouts = append(out.Rollouts, &otadv1.WithdrawnRollout{Id: o.After.ID, From: string(o.Before.State), To: string(o.After.State)})
	}
	return connect.NewResponse(out), nil
}

func encodeAffected(s fleet.Selected) *otadv1.Affected {
	return &otadv1.Affected{Selector: s.Selector, Devices: int32(s.Devices)}
}
