NOTICE = "For research only: not a medical device, not for clinical use."
