package api

import (
	"context"
	"encoding/json"

	"connectrpc.com/connect"

	"github.com/otad/otad/pkg/shadow"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

type shadowHandler struct{ *server }

func (h shadowHandler) GetShadow(ctx context.Context, r *connect.Request[otadv1.GetShadowRequest]) (*connect.Response[otadv1.GetShadowResponse], error) {
	d, err := h.fleet.Shadow(ctx, r.Msg.GetDeviceId(), r.Msg.GetName())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&otadv1.GetShadowResponse{Document: d.GetAccepted("", h.fleet.Now())}), nil
}

func (h shadowHandler) UpdateShadow(ctx context.Context, r *connect.Request[otadv1.UpdateShadowRequest]) (*connect.Response[otadv1.UpdateShadowResponse], error) {
	u, err := shadow.ParseUpdate(r.Msg.GetUpdate())
	if err != nil {
		return nil, err
	}
	res, err := h.fleet.UpdateShadow(ctx, r.Msg.GetDeviceId(), r.Msg.GetName(), u)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&otadv1.UpdateShadowResponse{Document: res.Document.GetAccepted("", h.fleet.Now())}), nil
}

func (h shadowHandler) WatchShadow(ctx context.Context, r *connect.Request[otadv1.WatchShadowRequest], stream *connect.ServerStream[otadv1.WatchShadowResponse]) error {
	device, name := r.Msg.GetDeviceId(), r.Msg.GetName()
	changed, stop := h.fleet.WatchShadow(device, name)
	defer stop()
	last := int64(-1)
	return watch(ctx, changed, func() (bool, error) {
		d, err := h.fleet.Shadow(ctx, device, name)
		if err != nil {
			return false, err
		}
		if d.Version == last {
			return false, nil
		}
		last = d.Version
		return false, stream.Send(&otadv1.WatchShadowResponse{Document: json.RawMessage(d.GetAccepted("", h.fleet.Now()))})
	})
}
