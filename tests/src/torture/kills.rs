//! Kill campaign.
