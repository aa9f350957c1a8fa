package api

import (
	"context"

	"connectrpc.com/connect"

	otadv1 "github.com/otad/otad/proto/otad/v1"
)

type trustHandler struct{ *server }

func (h trustHandler) GetTrust(ctx context.Context, _ *connect.Request[otadv1.GetTrustRequest]) (*connect.Response[otadv1.GetTrustResponse], error) {
	info, err := h.fleet.Trust(ctx)
	if err != nil {
		return nil, err
	}
	snapshot, err := info.Snapshot.MarshalText()
	if err != nil {
		return nil, err
	}
	timestamp, err := info.Timestamp.MarshalText()
	if err != nil {
		return nil, err
	}
	ca := h.fleet.CA.RootSHA256()
	return connect.NewResponse(&otadv1.GetTrustResponse{
		Root: info.Root, Targets: info.Targets, FirstRoot: info.FirstRoot,
		SnapshotKey: string(snapshot), TimestampKey: string(timestamp),
		CaSha256: ca[:], DeviceUrl: h.fleet.DeviceURL,
	}), nil
}

func (h trustHandler) InitTrust(ctx context.Context, r *connect.Request[otadv1.InitTrustRequest]) (*connect.Response[otadv1.InitTrustResponse], error) {
	if err := h.fleet.InitTrust(ctx, r.Msg.GetRoot(), r.Msg.GetTargets()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&otadv1.InitTrustResponse{}), nil
}

func (h trustHandler) PublishTargets(ctx context.Context, r *connect.Request[otadv1.PublishTargetsRequest]) (*connect.Response[otadv1.PublishTargetsResponse], error) {
	version, signed, err := h.fleet.PublishTargets(ctx, r.Msg.GetTargets())
	if err != nil {
		return nil, err
	}
	out := &otadv1.PublishTargetsResponse{Version: version}
	for _, id := range signed {
		out.Signed = append(out.Signed, id.String())
	}
	return connect.NewResponse(out), nil
}
