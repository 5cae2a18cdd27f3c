"""From predictions to finished instances (section 3.6), and from an image in any form to detections."""
