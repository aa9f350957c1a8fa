package api

import (
	"context"

	"connectrpc.com/connect"

	"github.com/otad/otad/internal/fleet"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

type groupHandler struct{ *server }

func (h groupHandler) CreateGroup(ctx context.Context, r *connect.Request[otadv1.CreateGroupRequest]) (*connect.Response[otadv1.CreateGroupResponse], error) {
	want := fleet.Group{Name: r.Msg.GetName(), Dynamic: r.Msg.GetDynamic(), Selector: r.Msg.GetSelector()}
	g, err := h.fleet.CreateGroup(ctx, want, r.Msg.GetDevices())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&otadv1.CreateGroupResponse{Group: encodeGroup(g)}), nil
}

func (h groupHandler) GetGroup(ctx context.Context, r *connect.Request[otadv1.GetGroupRequest]) (*connect.Response[otadv1.GetGroupResponse], error) {
	g, err := h.fleet.Store.Group(ctx, r.Msg.GetName())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&otadv1.GetGroupResponse{Group: encodeGroup(g)}), nil
}

func (h groupHandler) ListGroups(ctx context.Context, _ *connect.Request[otadv1.ListGroupsRequest]) (*connect.Response[otadv1.ListGroupsResponse], error) {
	all, err := h.fleet.Store.Groups(ctx)
	if err != nil {
		return nil, err
	}
	out := &otadv1.ListGroupsResponse{}
	for _, g := range all {
		out.Groups = append(out.Groups, encodeGroup(g))
	}
	return connect.NewResponse(out), nil
}

func (h groupHandler) ListGroupMembers(ctx context.Context, r *connect.Request[otadv1.ListGroupMembersRequest]) (*connect.Response[otadv1.ListGroupMembersResponse], error) {
	limit, after, err := pageAfter(r.Msg.GetPageSize(), r.Msg.GetPageToken())
	if err != nil {
		return nil, err
	}
	ids, err := h.fleet.Store.GroupMembers(ctx, r.Msg.GetName(), after, limit+1)
	if err != nil {
		return nil, err
	}
	out := &otadv1.ListGroupMembersResponse{Devices: ids}
	if len(ids) > limit {
		out.Devices = ids[:limit]
		out.NextPageToken = encodePageToken(ids[limit-1])
	}
	return connect.NewResponse(out), nil
}

func (h groupHandler) ChangeGroupMembers(ctx context.Context, r *connect.Request[otadv1.ChangeGroupMembersRequest]) (*connect.Response[otadv1.ChangeGroupMembersResponse], error) {
	g, err := h.fleet.ChangeMembers(ctx, r.Msg.GetName(), r.Msg.GetAdd(), r.Msg.GetRemove())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&otadv1.ChangeGroupMembersResponse{Group: encodeGroup(g)}), nil
}

func (h groupHandler) DeleteGroup(ctx context.Context, r *connect.Request[otadv1.DeleteGroupRequest]) (*connect.Response[otadv1.DeleteGroupResponse], error) {
	if err := h.fleet.Store.DeleteGroup(ctx, r.Msg.GetName()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&otadv1.DeleteGroupResponse{}), nil
}

func encodeGroup(g fleet.Group) *otadv1.Group {
	return &otadv1.Group{Name: g.Name, Dynamic: g.Dynamic, Selector: g.Selector, CreatedAt: timestamp(g.CreatedAt), Members: int64(g.Members), Building: g.Building}
}
