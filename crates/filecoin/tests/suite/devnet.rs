use floe_filecoin as _;
