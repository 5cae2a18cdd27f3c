"""From predictions to finished instances (section 3.6), and from a picture in any form to detections."""
