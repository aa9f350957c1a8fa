package api

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"connectrpc.com/connect"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

type deviceHandler struct{ *server }

func (h deviceHandler) ListDevices(ctx context.Context, r *connect.Request[otadv1.ListDevicesRequest]) (*connect.Response[otadv1.ListDevicesResponse], error) {
	limit, after, err := pageAfter(r.Msg.GetPageSize(), r.Msg.GetPageToken())
	if err != nil {
		return nil, err
	}
	page, more, err := h.fleet.Devices(ctx, r.Msg.GetSelector(), after, limit)
	if err != nil {
		return nil, err
	}
	out := &otadv1.ListDevicesResponse{}
	for _, d := range page {
		out.Devices = append(out.Devices, encodeDevice(d))
	}
	if more {
		out.NextPageToken = encodePageToken(page[len(page)-1].ID)
	}
	return connect.NewResponse(out), nil
}

func (h deviceHandler) CountDevices(ctx context.Context, r *connect.Request[otadv1.CountDevicesRequest]) (*connect.Response[otadv1.CountDevicesResponse], error) {
	n, err := h.fleet.CountDevices(ctx, r.Msg.GetSelector())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&otadv1.CountDevicesResponse{Devices: int64(n)}), nil
}

func (h deviceHandler) GetDevice(ctx context.Context, r *connect.Request[otadv1.GetDeviceRequest]) (*connect.Response[otadv1.GetDeviceResponse], error) {
	d, err := h.fleet.Device(ctx, r.Msg.GetId())
	if err != nil {
		return nil, err
	}
	groups, err := h.fleet.Store.DeviceGroups(ctx, d.ID)
	if err != nil {
		return nil, err
	}
	out := &otadv1.GetDeviceResponse{Device: encodeDevice(d), Groups: groups}
	from, drifted, err := h.fleet.DriftOf(ctx, d.ID)
	if drifted {
		out.Drift = &otadv1.Drift{RolloutId: from.RolloutID, Firmware: from.Release.String(), Since: timestamp(from.DriftedAt)}
	}
	return connect.NewResponse(out), err
}

func (h deviceHandler) ExplainDevice(ctx context.Context, r *connect.Request[otadv1.ExplainDeviceRequest]) (*connect.Response[otadv1.ExplainDeviceResponse], error) {
	list, err := h.fleet.Why(ctx, r.Msg.GetId())
	if err != nil {
		return nil, err
	}
	out := &otadv1.ExplainDeviceResponse{}
	for _, b := range list {
		m := &otadv1.Because{RolloutId: b.Rollout.ID, Firmware: b.Rollout.Release.String(), State: string(b.Rollout.State), Cause: string(b.Cause), Why: b.Why, Since: timestamp(b.Since), Until: timestamp(b.Until), Remedy: b.Remedy}
		if c := b.Rollout.Command; c != nil {
			m.Command = c.Name
		}
		if b.Execution != nil {
			m.Status = string(b.Execution.Status)
		}
		out.Because = append(out.Because, m)
	}
	return connect.NewResponse(out), nil
}

func (h deviceHandler) RevokeDevice(ctx context.Context, r *connect.Request[otadv1.RevokeDeviceRequest]) (*connect.Response[otadv1.RevokeDeviceResponse], error) {
	d, err := h.fleet.RevokeDevice(ctx, r.Msg.GetId())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&otadv1.RevokeDeviceResponse{Device: encodeDevice(d)}), nil
}

func (h deviceHandler) DeleteDevice(ctx context.Context, r *connect.Request[otadv1.DeleteDeviceRequest]) (*connect.Response[otadv1.DeleteDeviceResponse], error) {
	d := fleet.Deletion{DeviceID: r.Msg.GetId(), Force: r.Msg.GetForce()}
	if err := h.fleet.DeleteDevice(ctx, d); err != nil {
		return nil, err
	}
	return connect.NewResponse(&otadv1.DeleteDeviceResponse{}), nil
}

func (h deviceHandler) ChangeTags(ctx context.Context, r *connect.Request[otadv1.ChangeTagsRequest]) (*connect.Response[otadv1.ChangeTagsResponse], error) {
	d, err := h.fleet.ChangeTags(ctx, r.Msg.GetId(), r.Msg.GetSet(), r.Msg.GetRemove())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&otadv1.ChangeTagsResponse{Device: encodeDevice(d)}), nil
}

func (h deviceHandler) CreateEnrollmentToken(ctx context.Context, r *connect.Request[otadv1.CreateEnrollmentTokenRequest]) (*connect.Response[otadv1.CreateEnrollmentTokenResponse], error) {
	want := fleet.EnrollmentToken{
		Uses: int(r.Msg.GetUses()), DeviceGlob: r.Msg.GetDeviceGlob(), Hardware: r.Msg.GetHardware(), Tags: r.Msg.GetTags(),
	}
	if at := r.Msg.GetExpiresAt(); at != nil {
		want.ExpiresAt = at.AsTime()
	}
	var t fleet.EnrollmentToken
	var secret [32]byte
	var certificate []byte
	var err error
	if csr := r.Msg.GetClaimCsr(); len(csr) > 0 {
		t, secret, certificate, err = h.fleet.CreateClaim(ctx, want, csr)
	} else {
		t, secret, err = h.fleet.CreateEnrollmentToken(ctx, want)
	}
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&otadv1.CreateEnrollmentTokenResponse{Token: encodeToken(t), Secret: secret[:], ClaimCertificate: certificate}), nil
}

func (h deviceHandler) ListDeviceEvents(ctx context.Context, r *connect.Request[otadv1.ListDeviceEventsRequest]) (*connect.Response[otadv1.ListDeviceEventsResponse], error) {
	limit, err := pageSize(r.Msg.GetPageSize())
	if err != nil {
		return nil, err
	}
	token, err := decodePageToken(r.Msg.GetPageToken(), 1)
	if err != nil {
		return nil, err
	}
	before := int64(0)
	if token[0] != "" {
		if before, err = strconv.ParseInt(token[0], 10, 64); err != nil || before < 1 {
			return nil, fmt.Errorf("%w: page token", fleet.ErrInvalid)
		}
	}
	page, more, err := h.fleet.Events(ctx, r.Msg.GetId(), before, limit)
	if err != nil {
		return nil, err
	}
	out := &otadv1.ListDeviceEventsResponse{}
	for _, e := range page {
		out.Events = append(out.Events, &otadv1.DeviceEvent{
			Position: e.Position, Log: e.Log, Seq: e.Seq, At: timestamp(e.At), ReceivedAt: timestamp(e.Received), Kind: e.Kind, Data: e.Data, Trace: e.Trace,
		})
	}
	if more {
		out.NextPageToken = encodePageToken(strconv.FormatInt(page[len(page)-1].Position, 10))
	}
	return connect.NewResponse(out), nil
}

func (h deviceHandler) ListEnrollmentTokens(ctx context.Context, _ *connect.Request[otadv1.ListEnrollmentTokensRequest]) (*connect.Response[otadv1.ListEnrollmentTokensResponse], error) {
	all, err := h.fleet.Store.EnrollmentTokens(ctx)
	if err != nil {
		return nil, err
	}
	out := &otadv1.ListEnrollmentTokensResponse{}
	for _, t := range all {
		out.Tokens = append(out.Tokens, encodeToken(t))
	}
	return connect.NewResponse(out), nil
}

func (h deviceHandler) RevokeEnrollmentToken(ctx context.Context, r *connect.Request[otadv1.RevokeEnrollmentTokenRequest]) (*connect.Response[otadv1.RevokeEnrollmentTokenResponse], error) {
	if err := h.fleet.RevokeEnrollmentToken(ctx, r.Msg.GetId()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&otadv1.RevokeEnrollmentTokenResponse{}), nil
}

func encodeDevice(d fleet.DeviceRecord) *otadv1.Device {
	out := &otadv1.Device{
		Id: d.ID, Hardware: d.Hardware, Tags: d.Tags, Online: d.Reachability == fleet.Online, KeyFingerprint: d.KeyFingerprint,
		CreatedAt: timestamp(d.CreatedAt), LastSeen: timestamp(d.LastSeen), RevokedAt: timestamp(d.RevokedAt),
		Reachability: string(d.Reachability), Since: timestamp(d.Connection.Since), OfflineReason: d.Connection.Reason,
		FirmwareSha256: d.Firmware().Digest, ShadowVersion: d.Shadow.Version,
	}
	if f := d.Firmware(); f.Name != "" {
		out.Firmware = ota.ReleaseID{Name: f.Name, Version: f.Version}.String()
	}
	return out
}

func encodeToken(t fleet.EnrollmentToken) *otadv1.EnrollmentToken {
	return &otadv1.EnrollmentToken{
		Id: t.ID, Uses: int32(t.Uses), DeviceGlob: t.DeviceGlob, Hardware: t.Hardware, Tags: t.Tags,
		CreatedAt: timestamp(t.CreatedAt), ExpiresAt: timestamp(t.ExpiresAt.Truncate(time.Second)), RevokedAt: timestamp(t.RevokedAt),
	}
}
